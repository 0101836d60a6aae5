"""Tables and figures as Markdown, LaTeX, HTML and pictures."""
