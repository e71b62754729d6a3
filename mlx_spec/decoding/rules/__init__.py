"""What may be done to logits before tokens are chosen: one file a kind, none known to the step."""

from mlx_spec.decoding.rules.base import Judged as Judged
from mlx_spec.decoding.rules.base import LogitsRule as LogitsRule
from mlx_spec.decoding.rules.base import RuleContext as RuleContext
from mlx_spec.decoding.rules.base import apply_rules as apply_rules
from mlx_spec.decoding.rules.base import pick_tokens as pick_tokens
from mlx_spec.decoding.rules.base import rules_of_tokens as rules_of_tokens
