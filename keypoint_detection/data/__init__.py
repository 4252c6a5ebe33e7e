"""Labels and images: files, annotations, augmentation, data sets and their batches."""
