"""What the engine does otherwise on a GPU. Nothing here imports a CUDA package before a GPU is asked for."""
