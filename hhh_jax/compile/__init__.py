"""Any run's step compiled for a named TPU topology on a machine with no TPU: does it fit, and how fast could it go?"""
