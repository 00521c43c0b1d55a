"""Where things stand: the style sheet of the screens. Widgets bring what is theirs wherever they stand."""

from __future__ import annotations

CSS = """
Screen { background: $background; color: $foreground; }
#notice { height: auto; max-height: 3; padding: 0 1; background: $error 20%; display: none; }
#notice.-shown { display: block; }
ContentSwitcher { height: 1fr; }
Footer { height: 1; }
View { padding: 0 1; }
.summary { height: 1; text-wrap: nowrap; text-overflow: ellipsis; }

OverviewView #columns { layout: vertical; height: auto; }
OverviewView #left, OverviewView #right { height: auto; width: 100%; }
OverviewView VirtualTable { height: auto; max-height: 10; }
.-wide OverviewView #columns { layout: horizontal; }
.-wide OverviewView #left { width: 11fr; }
.-wide OverviewView #right { width: 12fr; margin-left: 3; }
.-wide OverviewView .part { margin-bottom: 1; }

WalkScreen Steps, WalkScreen Outcome { margin-bottom: 0; }
.-tall WalkScreen AddressBits, .-tall WalkScreen Steps, .-tall WalkScreen Outcome { margin-bottom: 1; }
.-tall .summary { margin-bottom: 1; height: 2; }
FramesView #frames-body { layout: vertical; height: 1fr; }
FramesView #frames-side { height: auto; }
.-wide FramesView #frames-body { layout: horizontal; }
.-wide FramesView #frames-side { width: 36; height: 1fr; margin-left: 2; }
.-wide FramesView UnderCursor { margin-bottom: 1; }
PageScreen #page-columns { layout: vertical; height: auto; }
PageScreen #page-left, PageScreen #page-right { height: auto; width: 100%; }
PageScreen VirtualTable { height: auto; max-height: 8; }
PageScreen Neighbours, PageScreen VirtualTable, PageScreen Fields { margin-bottom: 0; }
.-tall PageScreen Neighbours, .-tall PageScreen VirtualTable, .-tall PageScreen Fields { margin-bottom: 1; }
.-huge PageScreen #page-columns { layout: horizontal; }
.-huge PageScreen #page-left { width: 1fr; }
.-huge PageScreen #page-right { width: 76; margin-left: 3; }
ConsoleView RichLog { height: 1fr; background: $background; scrollbar-size-vertical: 1; }
SpaceView AddressStrip { margin-bottom: 0; }
SpaceView VirtualTable { margin-bottom: 0; }
"""
