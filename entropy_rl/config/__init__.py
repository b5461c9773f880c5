"""The configuration of a run: every field with its unit, methods by name, and the checks made before any work."""

from entropy_rl.config.checks import check, check_mesh
from entropy_rl.config.defaults import default
from entropy_rl.config.fields import check_fields
from entropy_rl.config.recipes import apply_recipe, named, transforms_of

__all__ = ["apply_recipe", "check", "check_fields", "check_mesh", "default", "named", "transforms_of"]
