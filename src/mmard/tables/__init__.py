"""Tables: statistics of figures, what may stand under each other, and how a table is written."""
