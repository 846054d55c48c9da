"""An application whose import fails."""

app = application = 1 / 0
