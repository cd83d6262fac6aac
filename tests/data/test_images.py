"""Tests of what is decoded, how, and what is refused beforehand."""

import io
import struct
from unittest import mock

import numpy as np
import picture_files
import shard_files
import tensorflow as tf
from PIL import Image, ImageOps

from jest_tf.data import images
from jest_tf.data.stores import shards


class DecodeTest(tf.test.TestCase):
    def decode(self, encoded):
        image = images.decode(encoded)
        self.assertNotIsInstance(image, shards.Fault, image)
        self.assertEqual(image.dtype, np.uint8)
        return image

    def test_every_kind_decodes_to_its_image(self):
        rgb = Image.fromarray(picture_files.smooth_picture())
        shown = {
            "grey jpeg": rgb.convert("L").convert("RGB"),
            "grey bmp": rgb.convert("L").convert("RGB"),
            "grey alpha": rgb.convert("L").convert("RGB"),
            "palette": rgb.convert("P").convert("RGB"),
            "gif": rgb.convert("P").convert("RGB"),
            "animated gif": rgb.convert("P").convert("RGB"),
            "one bit": rgb.convert("1").convert("RGB"),
        }
        lossy = ("jpeg", "progressive", "grey jpeg", "cmyk", "webp")
        for name, encoded in picture_files.every_kind().items():
            with self.subTest(name):
                image = self.decode(encoded)
                expected = np.asarray(shown.get(name, rgb)).astype(int)
                error = np.abs(image - expected)
                if name in lossy or name == "webp alpha":
                    self.assertLess(error.mean(), 6)
                else:
                    self.assertEqual(error.max(), 0)

    def test_palette_and_one_bit_bitmaps_are_decoded(self):
        rgb = Image.fromarray(picture_files.smooth_picture())
        for mode in ("P", "1"):
            image = self.decode(picture_files.encode(rgb.convert(mode), "BMP"))
            self.assertAllEqual(image, rgb.convert(mode).convert("RGB"))


class OrientationTest(tf.test.TestCase):
    """Pictures are decoded upright; Pillow's pixels are the slow twin."""

    FORM = images.Resizing(9)

    def encode(self, kind, orientation, **settings):
        exif = Image.Exif()
        exif[0x010F], exif[0x0112] = "a maker", orientation
        picture = Image.fromarray(picture_files.smooth_picture())
        return picture_files.encode(picture, kind, exif=exif, **settings)

    def test_all_orientations_equal_pillows_on_every_path(self):
        for kind, error in (("JPEG", 6), ("PNG", 0), ("WEBP", 0)):
            settings = {"WEBP": {"lossless": True}}.get(kind, {})
            encoded = [
                self.encode(kind, orientation, **settings)
                for orientation in range(10)  # 0 and 9 have no meaning
            ]
            upright = [images.decode(image) for image in encoded]
            for image, found in zip(encoded, upright, strict=True):
                opened = Image.open(io.BytesIO(image))
                turned = ImageOps.exif_transpose(opened).convert("RGB")
                self.assertAllClose(found, turned, atol=error, rtol=0)
            squares = [self.FORM(image) for image in upright]
            # Also where all are upright, or undecodable.
            for some in (slice(10), slice(2)):
                prepared = [images.prepare(x) for x in [*encoded[some], b"?"]]
                prepared[-1] = b""
                turns = list(map(images.orientation, prepared))
                kept, batch = images.decode_batch(
                    tf.constant(prepared), turns, {"image": self.FORM}
                )
                self.assertAllEqual(kept, range(len(prepared) - 1))
                self.assertAllEqual(batch["image"], squares[some])
            if kind == "WEBP":  # with EXIF, it is not for a graph alone
                with self.assertRaisesRegex(tf.errors.OpError, "no EXIF"):
                    images.decode_all(tf.constant(encoded), self.FORM)
            else:
                self.assertAllEqual(
                    images.decode_all(tf.constant(encoded), self.FORM), squares
                )

    def test_damaged_exif_is_ignored_alike_with_and_without_a_graph(self):
        in_graph = tf.function(images._orientation, autograph=False)
        rng, found = np.random.default_rng(0), set()
        for kind in ("JPEG", "PNG"):
            whole = self.encode(kind, 6)
            self.assertEqual(images.orientation(whole), 6)
            for end in range(8, 100):
                cut = images.orientation(whole[:end])
                self.assertEqual(cut, in_graph(tf.constant(whole[:end])))
            for _ in range(300):
                head, _ = shard_files.mutate(whole[8:100], rng)
                damaged = whole[:8] + head + whole[100:]
                orientation = images.orientation(damaged)
                found.add(orientation)
                self.assertEqual(orientation, in_graph(tf.constant(damaged)))
        self.assertTrue({1, 6} <= found <= {*range(1, 9)}, found)
        for offset in (0xFFFFFFFF, 0x7FFFFFFF, 0, 1):
            place = whole.index(b"MM\0*") + 4
            damaged = bytearray(whole)
            damaged[place : place + 4] = struct.pack(">I", offset)
            self.assertAllEqual(
                images.decode(bytes(damaged)), picture_files.smooth_picture()
            )


class RefuseTest(tf.test.TestCase):
    def refuse(self, encoded, reason):
        fault = images.decode(encoded)
        self.assertIsInstance(fault, shards.Fault)
        self.assertRegex(fault.reason, reason)
        self.assertNotIn("\n", fault.reason)
        self.assertNotIn("{{", fault.reason)

    def test_other_bytes_are_refused(self):
        self.refuse(b"", "empty image")
        self.refuse(b"<html>", "unknown image format.*6 bytes")
        self.refuse(
            picture_files.encode(picture_files.smooth_picture(), "TIFF"),
            "unknown image format",
        )

    def test_truncated_images_of_every_kind_are_refused(self):
        for name, encoded in picture_files.every_kind().items():
            # Cut within the first frame, which is all that is read.
            whole = images.prepare(encoded)
            for share in (0.02, 0.3, 0.6, 0.9):
                cut = whole[: int(share * len(whole))]
                with self.subTest(name, share=share):
                    self.assertIsInstance(images.decode(cut), shards.Fault)

    def test_a_jpeg_cut_in_its_last_rows_is_refused(self):
        encoded = picture_files.every_kind()["jpeg"]
        for end in (-1, -2, -10):
            self.refuse(encoded[:end], "damaged image")

    def test_too_many_pixels_are_refused_before_decoding(self):
        pixels = picture_files.HEIGHT * picture_files.WIDTH
        for name, encoded in picture_files.every_kind().items():
            with self.subTest(name):
                with mock.patch.object(images, "MAX_PIXELS", pixels):
                    found = images.prepare(encoded)
                self.assertNotIsInstance(found, shards.Fault)
                with mock.patch.object(images, "MAX_PIXELS", pixels - 1):
                    fault = images.prepare(encoded)
                self.assertEqual(
                    fault.reason,
                    "oversized image: 16 x 12 pixels, more than 191",
                )

    def test_a_decompression_bomb_is_refused_at_once(self):
        # 25 GB of pixels, as the header says.
        bomb = bytearray(picture_files.every_kind()["png"])
        bomb[16:24] = struct.pack(">II", 100_000, 85_000)
        self.refuse(bytes(bomb), "oversized image: 100000 x 85000")

    def test_a_jpeg_of_very_many_scans_is_refused(self):
        encoded = picture_files.every_kind()["progressive"]
        self.refuse(encoded + b"\xff\xda" * 100, "JPEG of 1.. scans")

    def test_a_webp_larger_than_its_canvas_is_refused(self):
        encoded = bytearray(picture_files.every_kind()["webp alpha"])
        self.assertEqual(encoded[12:16], b"VP8X")
        encoded[24:30] = struct.pack("<HBHB", 0, 0, 0, 0)  # 1 x 1
        self.refuse(bytes(encoded), "damaged image")

    def test_a_gif_whose_data_ends_early_is_refused(self):
        # It is formally complete.
        gif = bytearray(picture_files.every_kind()["gif"])
        gif[-6] ^= 0xFF
        gif[-9] ^= 0xFF
        self.refuse(bytes(gif), "damaged image: image file is truncated")

    def test_no_pixels_are_refused(self):
        for name, place, size in (("png", 16, 4), ("bmp", 18, 4)):
            encoded = bytearray(picture_files.every_kind()[name])
            encoded[place : place + size] = bytes(size)
            self.refuse(bytes(encoded), "image without pixels|unknown")


class DecodeImageTest(tf.test.TestCase):
    def test_resizing_equals_tf_image_resize_bit_for_bit(self):
        for shape in ((5, 7), (16, 16), (33, 8), (250, 301), (1, 90)):
            random = np.random.default_rng(0)
            image = random.integers(0, 256, (*shape, 3), np.uint8)
            resized = tf.image.resize(image, [8, 8], antialias=True)
            self.assertAllEqual(
                images.resize_image(image, 8),
                tf.saturate_cast(tf.round(resized), tf.uint8),
            )

    def test_shape_is_static_in_a_graph(self):
        dataset = tf.data.Dataset.from_tensors("").map(
            lambda encoded: images.resize_image(
                tf.io.decode_image(encoded, 3, expand_animations=False), 8
            )
        )
        self.assertEqual(dataset.element_spec.shape, [8, 8, 3])
