"""Off-screen pictures of a MuJoCo model, cheap enough to collect demonstrations on a CPU.

Shadows and reflections are off: with them a frame costs 50 ms at any size, without 1 to 7. ONE OpenGL context serves
every camera and size, because mujoco.Renderer is tied to one size and a second one alive makes the first return stale
or black pictures under OSMesa, without an error. Shapes: G geoms of the model.
"""

from __future__ import annotations

import importlib
import os
import sys
import weakref
from typing import Any

import numpy as np

LARGEST = 480  # pixels
HIDDEN_GROUP = 5  # must be a geom group that the model does not use


class Renderer:
    """`hidden` names, per camera, bodies that this camera never sees: drawing them anyway is most of its cost."""

    def __init__(self, model: Any, hidden: dict[str, tuple[str, ...]]) -> None:
        import mujoco

        assert not (model.geom_group == HIDDEN_GROUP).any()
        self._mujoco, self._model = mujoco, model
        model.vis.global_.offwidth = model.vis.global_.offheight = LARGEST
        model.vis.quality.offsamples = 0
        self._context = _gl_context()
        self._context.make_current()
        self._resources = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self.free = weakref.finalize(self, _free, self._context, self._resources)  # also at exit, before OpenGL goes
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._resources)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        body_G = np.array([model.body(body).name for body in model.geom_bodyid])
        self._hidden_G = {camera: np.isin(body_G, names) for camera, names in hidden.items()}

    def __call__(self, data: Any, camera: str, size: int) -> np.ndarray:
        """uint8 [size, size, 3], as the camera sees it; `size` is at most LARGEST."""
        mj, model = self._mujoco, self._model
        view = mj.MjvCamera()
        view.type, view.fixedcamid = mj.mjtCamera.mjCAMERA_FIXED, model.camera(camera).id
        group_G = model.geom_group.copy()
        if camera in self._hidden_G:
            model.geom_group[self._hidden_G[camera]] = HIDDEN_GROUP  # not among those that MjvOption shows
        mj.mjv_updateScene(model, data, mj.MjvOption(), None, view, mj.mjtCatBit.mjCAT_ALL, self._scene)
        model.geom_group[:] = group_G
        rect = mj.MjrRect(0, 0, size, size)
        picture = np.empty((size, size, 3), dtype=np.uint8)
        self._context.make_current()
        mj.mjr_render(rect, self._scene, self._resources)
        mj.mjr_readPixels(picture, None, rect, self._resources)
        return picture[::-1].copy()  # OpenGL counts rows from the bottom


def _free(context: Any, resources: Any) -> None:
    context.make_current()
    resources.free()
    context.free()


def _gl_context() -> Any:
    """An off-screen OpenGL context by MUJOCO_GL (egl, osmesa, glfw); without it EGL where there is no display.

    MuJoCo itself reads MUJOCO_GL only once, when first imported, and then wants a display by default.
    """
    default = "egl" if sys.platform == "linux" and not os.environ.get("DISPLAY") else "glfw"
    backend = os.environ.get("MUJOCO_GL") or default
    if backend not in ("egl", "osmesa", "glfw"):
        raise ValueError(f"MUJOCO_GL={backend!r} cannot render; set it to egl, osmesa or glfw")
    try:
        return importlib.import_module(f"mujoco.{backend}").GLContext(LARGEST, LARGEST)
    except (ImportError, AttributeError, RuntimeError) as error:
        fix = "install libegl1 and libosmesa6 or choose another backend with MUJOCO_GL=egl|osmesa|glfw"
        raise ValueError(f"no off-screen OpenGL through {backend} ({error}); {fix}") from error
