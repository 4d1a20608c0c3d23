"""What every evaluation needs: exports and captions that are loaded, results that are written."""
