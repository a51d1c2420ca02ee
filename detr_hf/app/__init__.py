"""The page to try a detector in a browser: pictures go in, boxes answer the threshold at once, attention comes at a
click."""
