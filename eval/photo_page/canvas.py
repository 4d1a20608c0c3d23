"""A canvas on which a mask is painted over a picture, by mouse, pen or finger: it tells of each finished stroke.

gradio's own image editor uploads the picture anew at every change, and draws nothing where it was given no layer.
"""

import base64
import io
from typing import Any

import gradio as gr
from PIL import Image

from eval.photo_page.views import painted_layer, painted_mask
from models.upright import open_picture

_PNG = "data:image/png;base64,"

_TEMPLATE = """
<div class="sheet"><img alt="The picture to paint on" draggable="false"><canvas></canvas></div>
<div class="tools">
  <label>Brush <input type="range" class="brush" min="1" max="25" value="8" aria-label="Size of the brush"></label>
  <label><input type="checkbox" class="erase"> Erase</label>
  <button type="button" class="clear">Clear</button>
</div>
"""

_STYLE = """
.sheet { position: relative; width: fit-content; max-width: 100%; line-height: 0; }
.sheet { margin: 1.25rem auto 0; } /* below the label, which would take the strokes there */
.sheet img { display: block; max-width: 100%; max-height: 440px; width: auto; user-select: none; }
.sheet canvas { position: absolute; inset: 0; width: 100%; height: 100%; opacity: .55; }
.sheet canvas { cursor: crosshair; touch-action: none; }
.tools { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; padding: .6rem; }
.tools { align-items: center; justify-content: center; }
.tools label { display: flex; gap: .5rem; align-items: center; }
.tools .clear { font: inherit; padding: .15rem .75rem; border-radius: 6px; }
.tools .clear { border: 1px solid var(--border-color-primary); }
"""

_SCRIPT = """
const part = (name) => element.querySelector(name);
let last = null;

function load() {
  const { picture, layer } = props.value || {};
  const canvas = part('canvas'), image = part('img');
  canvas.width = canvas.height = 1;
  image.onload = () => {
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    if (layer) {
      const before = new Image();
      before.onload = () => canvas.getContext('2d').drawImage(before, 0, 0);
      before.src = layer;
    }
  };
  part('.sheet').style.visibility = picture ? 'visible' : 'hidden';
  if (picture) image.src = picture;
}

function place(event) {
  const canvas = part('canvas'), box = canvas.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  return [x * canvas.width, y * canvas.height];
}

function draw(to) {
  const canvas = part('canvas'), context = canvas.getContext('2d');
  context.globalCompositeOperation = part('.erase').checked ? 'destination-out' : 'source-over';
  context.strokeStyle = '#d63031';
  context.lineWidth = part('.brush').value / 100 * Math.max(canvas.width, canvas.height);
  context.lineCap = context.lineJoin = 'round';
  context.beginPath();
  context.moveTo(...last);
  context.lineTo(...to);
  context.stroke();
  last = to;
}

const tell = () => trigger('input', { layer: part('canvas').toDataURL('image/png') });

element.addEventListener('pointerdown', (event) => {
  if (event.target !== part('canvas') || event.button) return;
  event.target.setPointerCapture(event.pointerId);
  last = place(event);
  draw(last);
});
element.addEventListener('pointermove', (event) => { if (last) draw(place(event)); });
for (const end of ['pointerup', 'pointercancel']) {
  element.addEventListener(end, () => { if (last) { last = null; tell(); } });
}
element.addEventListener('click', (event) => {
  if (event.target !== part('.clear')) return;
  const canvas = part('canvas');
  canvas.getContext('2d').clearRect(0, 0, canvas.width, canvas.height);
  tell();
});
watch('value', load);
load();
"""


def paint_canvas(name: str) -> gr.HTML:
    """An empty canvas.

    Args:
        name: id on the page.
    """
    return gr.HTML(
        value=None,
        label="Paint over what may change",
        show_label=True,
        container=True,
        html_template=_TEMPLATE,
        css_template=_STYLE,
        js_on_load=_SCRIPT,
        elem_id=name,
    )


def canvas_value(picture: Image.Image, drawn: Image.Image | None) -> dict[str, str]:
    """What the canvas shows: a picture, and the mask that was drawn on it before."""
    layer = "" if drawn is None else _uri(painted_layer(picture.size, drawn), "png")
    return {"picture": _uri(picture, "jpeg"), "layer": layer}


def painted_on(told: Any, picture: Image.Image) -> Image.Image | None:
    """The mask of what was painted on a picture, of its size; None where nothing is painted.

    Args:
        told: what the canvas has told.

    Raises:
        ValueError: it is no PNG of the picture's size.
    """
    try:
        layer = open_picture(base64.b64decode(str(told).removeprefix(_PNG), validate=True))
        if layer.size != picture.size:
            raise ValueError(f"it has {layer.width} x {layer.height} pixels")
        layer.load()
    except Exception as error:  # Pillow's decoders let through almost anything
        raise ValueError(f"what was painted cannot be read ({error}); load the page again") from error
    return painted_mask(layer)


def _uri(picture: Image.Image, kind: str) -> str:
    """A picture as a data URI: "png" or "jpeg"."""
    stream = io.BytesIO()
    picture.save(stream, kind)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
