"""TurboEdit's noise encoder."""
