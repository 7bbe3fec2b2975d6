"""The page `/ui`: a chat playground and the cluster as it is now. Files of `page/`, served as they are."""
