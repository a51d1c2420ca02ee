"""From pictures to detections: `Detector`, `Detections`, and the model that ships with the package."""
