"""The page of `detr-hf app` as a Space: copy this folder into one, and name your models below.

A Space with two CPU cores answers a picture in a second or two with a ResNet-50; what a visitor gives stays in memory,
and is forgotten with the page.
"""

from detr_hf.app.serving import serve

MODELS = ["detr-digits"]  # or "facebook/detr-resnet-50", "your-name/your-detector", ...

if __name__ == "__main__":
    serve(MODELS, host="0.0.0.0", port=7860)
