"""Films of a text that un-masks itself: in the terminal, as GIF, SVG, HTML and terminal recording."""
