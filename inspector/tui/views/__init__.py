"""The views: one module each, one a screen."""
