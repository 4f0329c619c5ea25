"""Breast masses, malignant or benign, from measurements of their cell nuclei: a small real table."""
