"""Imports go one way, and a batch passes few modules, as docs/ shows."""

import graphlib

import tensorflow as tf
from PIL import Image

from benchmarks import house, report

PICTURE = report.ROOT / "docs/figures/house.png"
# Modules from record to loss, without `config` and `files`.
MOST = 40


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

    def test_the_page_lists_the_modules_from_record_to_loss(self):
        functions = house.trace()
        self.assertLessEqual(len(functions), MOST)
        page = house.PAGE.read_text("utf-8")
        self.assertIn(f"\n{house.summary(functions)}\n", page, "make trace")
