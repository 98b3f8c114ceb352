"""Report results: tables, charts, pages, Markdown."""
