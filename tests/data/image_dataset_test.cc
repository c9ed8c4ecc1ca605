#include "lathe/data/image_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "expect_error.h"
#include "temporary_directory.h"

namespace lathe::data {
namespace {

using ::testing::ElementsAre;
using testing::error_text;
using ::testing::HasSubstr;

std::string png(uint8_t value, int64_t size = 4) {
  image::Picture picture(size, size, 1);
  picture.bytes.assign(picture.bytes.size(), value);
  return image::encode_png(picture);
}

std::string idx_bytes(const std::vector<int>& shape, const std::string& elements) {
  std::string bytes = {0, 0, 8, static_cast<char>(shape.size())};
  for (const int size : shape) bytes += {0, 0, 0, static_cast<char>(size)};
  return bytes + elements;
}

class ImageDatasetTest : public ::testing::Test {
 protected:
  ImageDataset open(const std::string& name, ImageDatasetOptions options = {}) const {
    return ImageDataset::open({(folder / name).string()}, options);
  }
  std::string refusal(const std::string& name, const ImageDatasetOptions& options = {}) const {
    return error_text(ErrorKind::Data, [&] { open(name, options); });
  }
  void write_folder() const {
    folder.write("f/cat/b.png", png(2));
    folder.write("f/cat/a.png", png(1, 7));
    folder.write("f/ant/z.PNG", png(3));
    folder.write("f/.hidden", "");
  }
  testing::TemporaryDirectory folder;
};

TEST_F(ImageDatasetTest, FolderNamesAreClassesAndFilesComeByName) {
  write_folder();
  const ImageDataset dataset = open("f");
  ASSERT_EQ(dataset.size(), 3);
  EXPECT_THAT(dataset.label_names(), ElementsAre("ant", "cat"));
  EXPECT_EQ(dataset.place(1), (folder / "f/cat/a.png").string());
  EXPECT_EQ(dataset.label(1), 1);
  EXPECT_EQ(dataset.picture(1).height, 7);
  EXPECT_EQ(dataset.picture(0).bytes, std::vector<uint8_t>(16, 3));
}

TEST_F(ImageDatasetTest, FolderMistakesAreToldAtOnce) {
  write_folder();
  folder.write("f/stray.txt", "x");
  folder.write("f/ant/notes.txt", "x");
  std::filesystem::create_directory(folder / "f/empty");
  const std::string text = refusal("f");
  EXPECT_THAT(text, HasSubstr("/f/stray.txt: expected a directory per class, got a file"));
  EXPECT_THAT(text, HasSubstr("/f/ant/notes.txt: is neither PNG nor JPEG by its name"));
  EXPECT_THAT(text, HasSubstr("/f/empty: a class without pictures"));
}

TEST_F(ImageDatasetTest, DamagedPicturesAreNamedInOrder) {
  write_folder();
  folder.write("f/cat/c.png", png(2).substr(0, 40));
  folder.write("f/ant/a.jpg", "no picture");
  const std::string text = refusal("f");
  EXPECT_LT(text.find("ant/a.jpg: is neither PNG nor JPEG"),
            text.find("cat/c.png: damaged PNG: the file ends too early"));
  EXPECT_NE(text.find("cat/c.png"), std::string::npos);
}

TEST_F(ImageDatasetTest, UnknownLabelsSuggestTheNearest) {
  write_folder();
  EXPECT_THAT(refusal("f", {.labels = {"ant", "cats"}}), HasSubstr("unknown label \"cat\" (did you mean cats?"));
}

TEST_F(ImageDatasetTest, ListsAreCsvOrJsonLines) {
  write_folder();
  folder.write("l.csv", "label,path\r\n\"big, \"\"cat\"\"\",f/cat/a.png\r\nant,\"f/ant/z.PNG\"\r\n");
  folder.write("l.jsonl",
               "{\"path\": \"f/cat/a.png\", \"label\": 7}\n{\"path\": \"f/ant/z.PNG\", \"label\": \"ant\"}\n");
  const ImageDataset csv = open("l.csv"), json = open("l.jsonl");
  EXPECT_THAT(csv.label_names(), ElementsAre("ant", "big, \"cat\""));
  EXPECT_THAT(json.label_names(), ElementsAre("7", "ant"));
  EXPECT_EQ(csv.picture(0), json.picture(0));
  EXPECT_EQ(csv.label(0), 1);
}

TEST_F(ImageDatasetTest, ListMistakesNameTheLine) {
  write_folder();
  folder.write("l.csv", "path,label\nf/none.png,a\n");
  EXPECT_THAT(refusal("l.csv"), HasSubstr("f/none.png: no such file (line 2 of the list)"));
  folder.write("l.csv", "path,label\nf/cat/a.png\n");
  EXPECT_THAT(refusal("l.csv"), HasSubstr("l.csv:2: expected 2 fields, got 1"));
  folder.write("l.csv", "file,label\nx,y\n");
  EXPECT_THAT(refusal("l.csv"), HasSubstr("l.csv:1: has no column \"path\""));
  folder.write("l.csv", "path,label\n\"x,y\n");
  EXPECT_THAT(refusal("l.csv"), HasSubstr("l.csv:2: a quote that is not closed"));
  folder.write("l.csv", "");
  EXPECT_THAT(refusal("l.csv"), HasSubstr("holds no samples"));
  folder.write("l.jsonl", "{\"path\": \"f/cat/a.png\"}\n");
  EXPECT_THAT(refusal("l.jsonl"), HasSubstr("l.jsonl:1: label: expected a string or an integer, got nothing"));
  EXPECT_THAT(refusal("none.csv"), HasSubstr("none.csv: no such file"));
}

TEST_F(ImageDatasetTest, IdxLabelsAreIndices) {
  folder.write("x-images-idx3-ubyte", idx_bytes({2, 1, 2}, "abcd"));
  folder.write("x-labels-idx1-ubyte", idx_bytes({2}, {2, 0}));
  const ImageDataset dataset = open("x-images-idx3-ubyte");
  EXPECT_THAT(dataset.label_names(), ElementsAre("0", "1", "2"));
  EXPECT_EQ(dataset.label(0), 2);
  EXPECT_EQ(dataset.picture(1).bytes, (std::vector<uint8_t>{'c', 'd'}));
  EXPECT_EQ(dataset.place(1), (folder / "x-images-idx3-ubyte").string() + ": image 1");
  EXPECT_THAT(refusal("x-images-idx3-ubyte", {.labels = {"a", "b"}}),
              HasSubstr("x-labels-idx1-ubyte: label 0: expected 0 to 1, got 2"));
  folder.write("x-labels-idx1-ubyte", idx_bytes({3}, {2, 0, 0}));
  EXPECT_THAT(refusal("x-images-idx3-ubyte"), HasSubstr("expected 2 labels, one per image of "));
}

TEST_F(ImageDatasetTest, ProposedLabelsGiveWayWhereAnotherOccurs) {
  write_folder();
  EXPECT_THAT(open("f", {.labels = {"cat", "dog", "ant"}, .labels_may_differ = true}).label_names(),
              ElementsAre("cat", "dog", "ant"));
  EXPECT_THAT(open("f", {.labels = {"cat", "dog"}, .labels_may_differ = true}).label_names(),
              ElementsAre("ant", "cat"));
  folder.write("x-images-idx3-ubyte", idx_bytes({2, 1, 2}, "abcd"));
  folder.write("x-labels-idx1-ubyte", idx_bytes({2}, {1, 0}));
  EXPECT_THAT(open("x-images-idx3-ubyte", {.labels = {"a", "b"}, .labels_may_differ = true}).label_names(),
              ElementsAre("a", "b"));
  EXPECT_THAT(open("x-images-idx3-ubyte", {.labels = {"a"}, .labels_may_differ = true}).label_names(),
              ElementsAre("0", "1"));
}

TEST_F(ImageDatasetTest, ColourIsRefusedForAModelOfOneChannel) {
  write_folder();
  folder.write("f/cat/c.png", image::encode_png(image::Picture(2, 2, 3)));
  EXPECT_EQ(open("f", {.channels = 3}).size(), 4);
  EXPECT_THAT(refusal("f", {.channels = 1}),
              HasSubstr("/f/cat/c.png: expected a grey picture, for a model of one channel, got a picture in colour"));
}

TEST_F(ImageDatasetTest, SplitKeepsTwinsTogether) {
  for (int i = 0; i < 200; ++i)
    folder.write("s/" + std::string(i % 2 == 0 ? "a/" : "b/") + std::to_string(i) + ".png",
                 png(static_cast<uint8_t>(i / 2), 3));
  ImageDataset train = open("s");
  const uint64_t whole = train.fingerprint();
  const ImageDataset eval = train.split_off(0.3);
  EXPECT_EQ(train.size() + eval.size(), 200);
  EXPECT_NEAR(static_cast<double>(eval.size()), 60, 2 * 23);  // five standard deviations of 100 pairs
  EXPECT_NE(train.fingerprint(), whole);
  for (int64_t i = 0; i < eval.size(); ++i) {
    for (int64_t j = 0; j < train.size(); ++j) ASSERT_NE(eval.picture(i), train.picture(j));
  }
}

TEST_F(ImageDatasetTest, FingerprintSeesPixelsAndLabels) {
  write_folder();
  const uint64_t before = open("f").fingerprint();
  EXPECT_EQ(open("f").fingerprint(), before);
  EXPECT_NE(open("f", {.labels = {"cat", "ant"}}).fingerprint(), before);
  folder.write("f/cat/a.png", png(9, 7));
  EXPECT_NE(open("f").fingerprint(), before);
}

}  // namespace
}  // namespace lathe::data
