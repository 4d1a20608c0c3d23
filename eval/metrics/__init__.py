"""Every figure that is measured, one definition each."""
