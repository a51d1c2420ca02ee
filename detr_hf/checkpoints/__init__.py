"""Any DETR checkpoint in, ours out; and back to transformers where that is exact.

`reading.read_checkpoint` reads, `surgery.adapt_heads` fits weights to other classes or queries,
`loading.prepare_loading` does both for `from_pretrained`; `transformers_model.to_transformers` and
`conversion.convert` write.
"""
