"""Reports: tables in; figures, HTML pages and folders of files out."""
