"""The report of a run: figures, tables and the viewer of its tokens, as a folder that opens with a double click."""
