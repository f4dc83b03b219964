"""Training and evaluation of the model that ``lensconv synth --preset signs`` writes."""
