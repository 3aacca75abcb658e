"""A suite's records as one frame, its statistics, and the page, figures and README table of them.

The flow is one way: :mod:`.frame` reads, :mod:`.statistics` and :mod:`.over_tasks` work out,
:mod:`.tables` and :mod:`.figures` present, :mod:`.pages` puts a page together and :mod:`.writing`
writes the files.
"""
