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
SpaceView AddressStrip { margin-bottom: 0; }
SpaceView VirtualTable { margin-bottom: 0; }
"""
