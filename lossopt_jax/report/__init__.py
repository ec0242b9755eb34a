"""What a person sees of a run: progress, tables, pictures, files. Imports no training code; it is handed what to show."""
