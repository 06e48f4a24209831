"""lithe's students as policies of LeRobot. Importing this registers the type "lithe".

Only the configuration is imported: LeRobot does so at the start of every one of its tools, and finds the policy
(modeling_lithe) and its processors (processor_lithe) beside it by their names when they are needed.
"""

from .configuration_lithe import LitheConfig

__all__ = ["LitheConfig"]
