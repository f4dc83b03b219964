"""Files of measurements: their formats, what may stand in them, and the statistics that tables show."""
