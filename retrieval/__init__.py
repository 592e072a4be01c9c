"""What is fetched: labelled neighbours as evidence, behind a leak guard. Only embeddings cross this border."""
