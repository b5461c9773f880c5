"""Methods × seeds, by one command: the runs, then what this many seeds say."""
