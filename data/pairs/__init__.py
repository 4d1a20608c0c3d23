"""Pairs of pictures for InstructPix2Pix: proposed, drawn, scored and chosen."""
