"""The mesh, several processes, this machine, SIGTERM, the clock and profiles."""
