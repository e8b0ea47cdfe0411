"""Pure builders of reports: they return HTML and metrics; who calls them keeps the files."""
