"""Imports between the rooms go one way, as docs/figures/house.png shows."""

import graphlib
import pathlib

import tensorflow as tf
from PIL import Image

from benchmarks import house

PICTURE = pathlib.Path(__file__).parent.parent / "docs/figures/house.png"


class HouseTest(tf.test.TestCase):
    def test_every_module_is_in_a_room(self):
        rooms = {room for edge in house.imports() for room in edge}
        self.assertLessEqual(rooms, set(house.ROOMS))

    def test_imports_go_down(self):
        self.assertEqual(house.upward(house.imports()), {})

    def test_modules_import_each_other_one_way(self):
        modules = house.modules()
        below = {module: set() for module in modules}
        for module, path in modules.items():
            for target in house.targets(path):
                while target not in modules:
                    target = target.rpartition(".")[0]
                if target not in ("jest_tf", module):
                    below[module].add(target)
        graphlib.TopologicalSorter(below).prepare()  # or raises CycleError

    def test_the_picture_shows_the_imports_of_today(self):
        drawn = Image.open(PICTURE).text["Description"].split()
        today = ["->".join(edge) for edge in house.imports()]
        self.assertCountEqual(drawn, today, "python -m benchmarks.house docs")
