"""What everything stands on: specs, files, places, processes, run directories, text on the terminal."""
