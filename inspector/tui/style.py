"""Where things stand: the style sheet of the screens. Widgets bring what is theirs wherever they stand."""

from __future__ import annotations

CSS = """
#notice { height: auto; max-height: 3; padding: 0 1; background: $error 20%; display: none; }
#notice.-shown { display: block; }
ContentSwitcher { height: 1fr; }
Footer { height: 1; }
View { padding: 0 1; }
.summary { height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
.-tall .summary { height: 2; }

OverviewView #columns { layout: vertical; height: auto; }
OverviewView #left, OverviewView #right { height: auto; width: 100%; }
OverviewView VirtualTable { height: auto; max-height: 10; }
.-wide OverviewView #columns, .-huge OverviewView #columns { layout: horizontal; }
.-wide OverviewView #left, .-huge OverviewView #left { width: 1fr; }
.-wide OverviewView #right, .-huge OverviewView #right { width: 1fr; min-width: 58; margin-left: 2; }
.-wide OverviewView .part, .-huge OverviewView .part { margin-bottom: 1; }

.-tall WalkScreen AddressBits, .-tall WalkScreen Steps, .-tall WalkScreen Outcome { margin-bottom: 1; }

FramesView #frames-body { layout: vertical; height: 1fr; }
FramesView #frames-side { height: auto; }
.-wide FramesView #frames-body, .-huge FramesView #frames-body { layout: horizontal; }
.-wide FramesView #frames-side, .-huge FramesView #frames-side { width: 33; height: 1fr; margin-left: 1; }
.-wide FramesView UnderCursor, .-huge FramesView UnderCursor { margin-bottom: 1; }

PageScreen #page-columns { layout: vertical; height: auto; }
PageScreen #page-left, PageScreen #page-right { height: auto; width: 100%; }
PageScreen #raw-page { margin-bottom: 1; }
PageScreen VirtualTable { height: auto; max-height: 8; }
.-tall PageScreen Neighbours, .-tall PageScreen Objects { margin-bottom: 1; }
.-tall PageScreen VirtualTable, .-tall PageScreen Fields { margin-bottom: 1; }
.-huge PageScreen #page-columns { layout: horizontal; }
.-huge PageScreen #page-left { width: 1fr; }
.-huge PageScreen #page-right { width: 76; margin-left: 3; }

.-tall .trace-summary { text-wrap: wrap; }
.trace-summary.-error { text-wrap: wrap; height: auto; max-height: 4; }
FaultsView VirtualTable, AllocationsView VirtualTable { min-height: 4; }
.-tall FaultsView FaultStrip, .-tall FaultsView VirtualTable { margin-bottom: 1; }

AllocationsView #allocations-body { layout: vertical; height: 1fr; }
AllocationsView #allocations-side { height: 3; }
AllocationsView #allocations-main { height: 1fr; }
.-tall AllocationsView #allocations-side { height: 6; margin-bottom: 1; }
.-tall AllocationsView VirtualTable { margin-bottom: 1; }
AllocationsView AllocationMap { height: 1fr; }
AllocationsView Holders { display: none; }
AllocationsView.-holders #holders-below { display: block; }
AllocationsView.-holders AllocationPicture { display: none; }
.-wide AllocationsView #allocations-body, .-huge AllocationsView #allocations-body { layout: horizontal; }
.-wide AllocationsView #allocations-side { width: 46; height: 1fr; margin: 0 2 0 0; }
.-huge AllocationsView #allocations-side { width: 62; height: 1fr; margin: 0 2 0 0; }
#block-beside { display: none; }
.-wide #block-beside, .-huge #block-beside { display: block; margin-top: 1; }
.-wide #block-below, .-huge #block-below { display: none; }
.-wide #holders-beside, .-huge #holders-beside { display: block; margin-top: 1; }
.-wide .-holders #holders-beside, .-huge .-holders #holders-beside { display: none; }
.-wide .-holders #holders-below, .-huge .-holders #holders-below { display: none; }
.-wide .-holders AllocationPicture, .-huge .-holders AllocationPicture { display: block; }

DevicesView #device-table { height: auto; min-height: 2; max-height: 8; }
DevicesView #buffer-table { min-height: 4; }
.-short DevicesView.-buffers #device-table { max-height: 3; }
.-short DevicesView.-buffers Reach { display: none; }
.-short DevicesView BufferFrames, .-short DevicesView #buffer-bytes { display: none; }
.-short DevicesView.-buffers BufferFrames, .-short DevicesView.-buffers #buffer-bytes { display: block; }
.-tall DevicesView #device-table, .-tall DevicesView Reach { margin-bottom: 1; }
.-tall DevicesView BufferFrames, .-tall DevicesView #buffer-table { margin-bottom: 1; }

ConsoleView RichLog { height: 1fr; background: $background; background-tint: $background 0%; }
ConsoleView RichLog { scrollbar-size-vertical: 1; }
"""
