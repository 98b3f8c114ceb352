"""Support torch.compile for models that are called by other methods than `forward`.

`torch.compile(model)` returns a wrapper that compiles `forward` alone and takes all else from the model, so that
`torch.compile(tokenizer).encode(video)` would silently run eagerly. Likewise `model.compile()`.
"""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook


class CompiledMethods:
    """Mixin of modules: methods named in `compiled_methods` run compiled too, by `compile()` or torch.compile.

    Both compile the submodules named in `compiled_parts` in place, so that the model itself runs them compiled as well;
    checks and conversions around them stay eager. A part may be a ModuleList, whose members are compiled, or be absent.
    """

    compiled_methods: ClassVar[tuple[str, ...]] = ()
    compiled_parts: ClassVar[tuple[str, ...]] = ()

    def compile(self, *arguments, **options) -> None:
        """Compile `forward` and the parts in place; the arguments are those of `torch.compile`."""
        super().compile(*arguments, **options)  # type: ignore[misc]  # of nn.Module
        for part in self.eager_parts():
            part.compile(*arguments, **options)

    def eager_parts(self) -> Iterator[nn.Module]:
        """Yield the parts that are not compiled yet."""
        for name in self.compiled_parts:
            part = getattr(self, name, None)
            for module in part if isinstance(part, nn.ModuleList) else [part]:
                # A wrapper of torch.compile has an _orig_mod.
                if isinstance(module, nn.Module) and not (module._compiled_call_impl or hasattr(module, "_orig_mod")):
                    yield module


def _wrap_methods(wrapper: nn.Module, name: str, module: nn.Module | None) -> None:
    """Give a wrapper of torch.compile the compiled methods; called for every submodule that is registered anywhere."""
    if name == "_orig_mod" and isinstance(module, CompiledMethods):
        for method in module.compiled_methods:
            object.__setattr__(wrapper, method, partial(_call_compiled, wrapper, method))  # its own sets the module's


def _call_compiled(wrapper, method: str, *arguments, **options):
    module, context = wrapper._orig_mod, wrapper.dynamo_ctx
    if callable(context.callback):  # not so with torch.compiler.disable, which has the same wrapper
        for part in module.eager_parts():
            part._compiled_call_impl = context(part._call_impl)
    result = getattr(module, method)(*arguments, **options)
    return wrapper if result is module else result


register_module_module_registration_hook(_wrap_methods)
