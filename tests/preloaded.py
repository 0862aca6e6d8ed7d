"""What `tests/warm.py` imports before it forks: all that a verb imports when it is asked for. It leaves no thread running."""

import torch.distributed
import transformers.models.llama.modeling_llama  # noqa: F401

import kyomei.__main__
import kyomei.cli
import kyomei.stages.audit
import kyomei.stages.certify
import kyomei.stages.check
import kyomei.stages.demo
import kyomei.stages.harvest
import kyomei.stages.measure
import kyomei.stages.report
import kyomei.stages.train
import kyomei.stages.watch  # noqa: F401
from kyomei.source.model import LanguageModel

torch.set_num_threads(1)
LanguageModel.load("embedded")
