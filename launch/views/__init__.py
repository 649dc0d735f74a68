"""Charts, drawings and pages: numbers in, HTML, SVG and PNG out."""
