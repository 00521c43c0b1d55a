"""Widgets that know no guest: a table, strips, maps, bars."""
