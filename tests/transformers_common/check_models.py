"""transformers' common model tests, run on our models (see README.md beside this file)."""

import tempfile
import unittest

import torch
from safetensors.torch import save_file

import detr_hf
from detr_hf import DETRConfig, DETRForObjectDetection, DETRForSegmentation, DETRModel

from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin
from ...test_pipeline_mixin import PipelineTesterMixin


class DETRModelTester:
    """Makes tiny configurations and batches in the form that the mixins ask for."""

    def __init__(self, parent):
        self.parent = parent
        self.is_training = True
        self.batch_size = 2
        self.num_queries = 6
        self.num_labels = 5
        self.hidden_size = 32
        self.num_hidden_layers = 2
        self.num_attention_heads = 4
        self.height, self.width = 96, 64
        self.encoder_seq_length = 6  # 96 x 64 at stride 32
        self.decoder_seq_length = self.num_queries

    def get_config(self):
        """Returns the tiny configuration."""
        return DETRConfig(
            hidden_dim=self.hidden_size,
            nheads=self.num_attention_heads,
            enc_layers=self.num_hidden_layers,
            dec_layers=self.num_hidden_layers,
            dim_feedforward=37,
            num_queries=self.num_queries,
            num_labels=self.num_labels,
            backbone="test_resnet",
            dropout=0.1,
        )

    def prepare_config_and_inputs_for_common(self):
        """Returns configuration and inputs."""
        inputs = {
            "pixel_values": torch.randn(self.batch_size, 3, self.height, self.width),
            "pixel_mask": torch.ones(self.batch_size, self.height, self.width, dtype=torch.int64),
        }
        return self.get_config(), inputs


class DETRModelTest(ModelTesterMixin, PipelineTesterMixin, unittest.TestCase):
    """The common tests. What is overridden says why."""

    all_model_classes = (DETRModel, DETRForObjectDetection, DETRForSegmentation)
    pipeline_model_mapping = {  # noqa: RUF012
        "image-feature-extraction": DETRModel,
        "object-detection": DETRForObjectDetection,
        "image-segmentation": DETRForSegmentation,
    }
    is_encoder_decoder = True
    test_missing_keys = True
    has_attentions = True
    test_torch_exportable = True

    def setUp(self):
        self.model_tester = DETRModelTester(self)
        self.config_tester = ConfigTester(self, config_class=DETRConfig, has_text_modality=False)
        assert detr_hf.version.__version__

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is not DETRModel:
            label = {"class_labels": torch.ones(3, dtype=torch.long), "boxes": torch.ones(3, 4)}
            label["masks"] = torch.ones(3, self.model_tester.height, self.model_tester.width, dtype=torch.bool)
            inputs["labels"] = [label] * self.model_tester.batch_size
        return inputs

    def test_attention_outputs(self):
        """Attentions. The mixin also counts the outputs, and knows of no model that returns logits and boxes."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        heads, queries, cells = 4, self.model_tester.num_queries, self.model_tester.encoder_seq_length
        for model_class in self.all_model_classes:
            for by_config in (False, True):
                model = model_class._from_config(config, attn_implementation="eager").eval()
                model.config.output_attentions = by_config
                with torch.no_grad():
                    outputs = model(**inputs) if by_config else model(**inputs, output_attentions=True)
                shapes = {
                    "encoder_attentions": (heads, cells, cells),
                    "decoder_attentions": (heads, queries, queries),
                    "cross_attentions": (heads, queries, cells),
                }
                for name, shape in shapes.items():
                    attentions = getattr(outputs, name)
                    self.assertEqual([tuple(a.shape[1:]) for a in attentions], [shape] * 2)

    def test_retain_grad_hidden_states_attentions(self):
        """Gradients of states and attentions. The mixin asks the decoder's first state for one: DETR's are zeros."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = DETRModel._from_config(config, attn_implementation="eager")
        outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
        kept = [outputs.encoder_hidden_states[0], outputs.decoder_hidden_states[1]]
        kept += [outputs.encoder_attentions[0], outputs.decoder_attentions[0], outputs.cross_attentions[0]]
        for tensor in kept:
            tensor.retain_grad()
        outputs.last_hidden_state.flatten()[0].backward(retain_graph=True)
        self.assertTrue(all(tensor.grad is not None for tensor in kept))

    @unittest.skip("DETR has no token embeddings.")
    def test_model_get_set_embeddings(self):
        """Token embeddings."""

    @unittest.skip("DETR has no token embeddings.")
    def test_resize_tokens_embeddings(self):
        """Token embeddings."""

    def test_model_weights_reload_no_missing_tied_weights(self):
        """A file without a single weight. transformers loads it as a random model; here it is refused."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            with tempfile.TemporaryDirectory() as folder:
                model_class(config).save_pretrained(folder)
                save_file({"placeholder": torch.tensor(0)}, f"{folder}/model.safetensors", metadata={"format": "pt"})
                with self.assertRaisesRegex(ValueError, "lacks"):
                    model_class.from_pretrained(folder)

    def test_config(self):
        """Configuration."""
        self.config_tester.run_common_tests()
