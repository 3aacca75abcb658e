"""A suite's records as one frame, its statistics, and the pages, figures and tables of them."""
