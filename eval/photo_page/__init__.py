"""The page on which people edit photographs with an export: layout, what its controls do, pictures that it shows."""
