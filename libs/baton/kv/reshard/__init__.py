"""Pages of one layout become pages of another: arithmetic on layouts, and the copies that it asks for. No I/O.

`ranks` says which tensor-parallel ranks deal with each other, `plan` which bytes of a source go where, `convert` what
becomes of an element, and `landing` does it in memory.
"""

from baton.kv.reshard.convert import Converter, converter
from baton.kv.reshard.plan import Plan, plan_between, why_not
from baton.kv.reshard.ranks import partners, readers

__all__ = ["Converter", "Plan", "converter", "partners", "plan_between", "readers", "why_not"]
