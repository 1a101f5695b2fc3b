use std::time::Instant;

use proptest::prelude::*;
use tokenizers::{
    AddedToken, DecoderWrapper, EncodeInput, ModelWrapper, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper, TokenizerBuilder,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
        unigram::{Unigram, UnigramTrainer},
        wordpiece::{WordPiece, WordPieceTrainer},
    },
    normalizers::{BertNormalizer, NFKC},
    pre_tokenizers::{bert::BertPreTokenizer, byte_level::ByteLevel, metaspace::Metaspace},
    processors::template::TemplateProcessing,
};

use super::*;

const CORPUS: &str = "the quick brown fox jumps over the lazy dog, and unbelievable understanding of the \
    tokenizers' internals is rewarded: 12345 times! naïve café 中文字符 данные 'quoted' re-use (parens) a_b C++";

/// Trains a tokenizer on a few words, so that it splits some and joins others.
fn trained(
    model: impl Into<ModelWrapper>,
    mut trainer: TrainerWrapper,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
) -> Tokenizer {
    let mut tokenizer = TokenizerBuilder::<
        ModelWrapper,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(model.into())
    .with_normalizer(normalizer)
    .with_pre_tokenizer(pre_tokenizer)
    .build()
    .unwrap();
    let corpus = CORPUS.split(", ").cycle().take(40);
    tokenizer.train(&mut trainer, corpus).unwrap();
    tokenizer.into()
}

fn special(names: &[&str]) -> Vec<AddedToken> {
    names
        .iter()
        .map(|name| AddedToken::from(*name, true))
        .collect()
}

/// The tokenizers, one of each kind: words of their own, bytes, whole texts, and tokens that hold or take in
/// whitespace.
fn tokenizers() -> Vec<(&'static str, Tokenizer)> {
    let names = ["[UNK]", "[CLS]", "[SEP]"];
    let word_piece = WordPieceTrainer::builder()
        .vocab_size(150)
        .special_tokens(special(&names))
        .build();
    let mut bert = trained(
        WordPiece::builder()
            .unk_token("[UNK]".into())
            .build()
            .unwrap(),
        TrainerWrapper::WordPieceTrainer(word_piece),
        Some(BertNormalizer::default().into()),
        Some(BertPreTokenizer.into()),
    );
    let frame = TemplateProcessing::builder()
        .try_single("[CLS] $0 [SEP]")
        .unwrap()
        .try_pair("[CLS] $A:0 [SEP]:0 $B:1 [SEP]:1")
        .unwrap()
        .special_tokens(vec![("[CLS]", 1), ("[SEP]", 2)])
        .build()
        .unwrap();
    bert.with_post_processor(Some(frame));
    let bytes = || {
        let trainer = BpeTrainer::builder()
            .vocab_size(400)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        TrainerWrapper::BpeTrainer(trainer)
    };
    let gpt = trained(
        BPE::default(),
        bytes(),
        None,
        Some(ByteLevel::default().into()),
    );
    let mut added = gpt.clone();
    added
        .add_tokens([
            AddedToken::from("lazy dog", false),
            AddedToken::from("<m>", true).lstrip(true).rstrip(true),
            AddedToken::from("fox", false).single_word(true),
        ])
        .unwrap();
    // Merges may reach over words where nothing splits first.
    let unsplit = trained(
        BPE::default(),
        bytes(),
        None,
        Some(ByteLevel::new(false, false, false).into()),
    );
    let unigram = UnigramTrainer::builder()
        .vocab_size(120)
        .unk_token(Some("[UNK]".into()))
        .special_tokens(special(&["[UNK]"]))
        .build()
        .unwrap();
    let sentence_piece = trained(
        Unigram::default(),
        TrainerWrapper::UnigramTrainer(unigram),
        Some(NFKC.into()),
        Some(Metaspace::default().into()),
    );
    vec![
        ("WordPiece", bert),
        ("byte-level BPE", gpt),
        ("added tokens", added),
        ("unsplit BPE", unsplit),
        ("Unigram", sentence_piece),
    ]
}

fn cutting(tokenizer: &Tokenizer, max_length: u32) -> Tokens {
    cutting_for(Task::Embed, tokenizer, max_length)
}

fn cutting_for(task: Task, tokenizer: &Tokenizer, max_length: u32) -> Tokens {
    let text = Text {
        max_length,
        task,
        ..serde_yaml::from_str("tokenizer: t.json").unwrap()
    };
    Tokens::new(tokenizer.clone(), &text).unwrap()
}

/// The tokens as the tokenizer itself cuts them, of a text or of a pair.
fn library<'a>(
    tokenizer: &Tokenizer,
    max_length: usize,
    text: impl Into<EncodeInput<'a>>,
) -> Encoding {
    let mut tokenizer = tokenizer.clone();
    let cut = TruncationParams {
        max_length,
        ..TruncationParams::default()
    };
    tokenizer.with_truncation(Some(cut)).unwrap();
    tokenizer.encode(text, true).unwrap()
}

fn ids(encoding: &Encoding) -> &[u32] {
    encoding.get_ids()
}

/// The pieces that texts are made of, much of it at odds with whitespace, bytes or words.
fn pieces() -> impl Strategy<Value = String> {
    let fixed = [
        "fox",
        "lazy dog",
        "lazy ",
        "unbelievable",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u{a0}",
        "\u{3000}",
        "e\u{301}",
        " \u{301}",
        "中文",
        "данные",
        "👩‍👩‍👧",
        "\u{200d}",
        "\0",
        "\u{fffd}",
        "<m>",
        " <m> ",
        "'s",
        "12345",
        "...",
        "ﬁ",
        "한국어",
        "[SEP]",
        "Ａ",
    ];
    prop_oneof![
        12 => prop::sample::select(fixed.to_vec()).prop_map(str::to_owned),
        2 => "\\PC{1,20}",
        // These are one word or one run of whitespace, longer than some cuts.
        1 => (1..600usize).prop_map(|length| "ab".repeat(length)),
        1 => (1..600usize).prop_map(|length| " ".repeat(length)),
    ]
}

#[test]
fn a_cut_text_has_the_tokens_of_the_whole() {
    let tokenizers = tokenizers();
    let text = prop::collection::vec(pieces(), 100..1500).prop_map(|pieces| pieces.concat());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&(text, 4..80u32), |(text, max_length)| {
            for (name, tokenizer) in &tokenizers {
                let tokens = cutting(tokenizer, max_length);
                let given = tokens.encode(&text).unwrap();
                let expected = library(tokenizer, max_length as usize, &*text);
                prop_assert_eq!(ids(&given.encoding), ids(&expected), "{}", name);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn what_fills_no_tokens_is_read_further() {
    for (name, tokenizer) in tokenizers() {
        let tokens = cutting(&tokenizer, 16);
        // The text has more whitespace than the first cut holds, and then words.
        let text = format!("fox{}lazy dog {}", " ".repeat(6000), "fox ".repeat(3000));
        let (given, expected) = (
            tokens.encode(&text).unwrap(),
            library(&tokenizer, 16, &*text),
        );
        assert_eq!(ids(&given.encoding), ids(&expected), "{name}");
    }
}

#[test]
fn a_text_is_truncated_where_more_of_it_is_left() {
    for (name, tokenizer) in tokenizers() {
        let exact = u32::try_from(
            cutting(&tokenizer, 80)
                .encode("fox, the lazy dog")
                .unwrap()
                .encoding
                .len(),
        )
        .unwrap();
        let tokens = cutting(&tokenizer, exact);
        for (text, truncated) in [
            ("fox, the lazy dog".to_owned(), false),
            ("fox, the lazy dog, the fox".to_owned(), true),
            ("fox ".repeat(30_000), true),
        ] {
            let given = tokens.encode(&text).unwrap();
            assert_eq!(given.truncated, truncated, "{name}: {text:.30}");
            assert!(given.encoding.get_overflowing().is_empty(), "{name}");
        }
    }
}

#[test]
fn a_pair_has_the_tokens_that_the_tokenizer_would_give_it() {
    let long = "the lazy dog, ".repeat(20);
    let texts = ["fox", "the quick brown fox jumps over", "", &long];
    for (name, tokenizer) in tokenizers() {
        for max_length in [5, 8, 13, 60] {
            let tokens = cutting_for(Task::Rerank, &tokenizer, max_length);
            for (first, second) in texts
                .iter()
                .flat_map(|first| texts.map(|second| (*first, second)))
            {
                let given = tokens
                    .encode_pair(&tokens.shared(first).unwrap(), &tokens.beginning(second))
                    .unwrap();
                let what = format!("{name}, {max_length} of {first:?} and {second:?}");
                let whole = library(&tokenizer, 10_000, (first, second));
                let most = max_length as usize;
                assert_eq!(given.truncated, whole.len() > most, "{what}");
                assert_eq!(given.encoding.len(), whole.len().min(most), "{what}");
                // Where both are too long, the library's choice of the one that gets an odd token is chance.
                let is_long = |text: &str| library(&tokenizer, 10_000, text).len() > most;
                if is_long(first) && is_long(second) {
                    continue;
                }
                let pair = library(&tokenizer, most, (first, second));
                assert_eq!(ids(&given.encoding), ids(&pair), "{what}");
                let types = given.encoding.get_type_ids();
                assert_eq!(types, pair.get_type_ids(), "{what}");
                let mask = given.encoding.get_attention_mask();
                assert_eq!(mask, pair.get_attention_mask(), "{what}");
            }
        }
    }
}

#[test]
fn a_huge_text_takes_no_longer_than_its_beginning() {
    let texts = [
        CORPUS.repeat(8_000),
        // This text has no whitespace to cut at, and the next no tokens to fill.
        "a".repeat(1 << 20),
        " ".repeat(1 << 20),
        "中".repeat(1 << 18),
    ];
    for (name, tokenizer) in tokenizers() {
        let tokens = cutting(&tokenizer, 128);
        for text in &texts {
            let started = Instant::now();
            let whole = library(&tokenizer, 128, &**text);
            let whole_took = started.elapsed();
            let started = Instant::now();
            let given = tokens.encode(text).unwrap();
            let took = started.elapsed();
            let begins = text.chars().next().unwrap();
            assert_eq!(ids(&given.encoding), ids(&whole), "{name} of {begins}…");
            assert!(
                took * 4 < whole_took,
                "{name} of {begins}…: {took:?} of {whole_took:?}"
            );
        }
    }
}

#[test]
fn a_length_without_room_for_text_is_refused() {
    let (_, tokenizer) = tokenizers().remove(0);
    let text = |max_length| Text {
        max_length,
        ..serde_yaml::from_str("tokenizer: t.json").unwrap()
    };
    let error = Tokens::new(tokenizer.clone(), &text(2)).err().unwrap();
    assert!(
        error.contains("text.maxLength: 2 leaves no room"),
        "{error}"
    );
    let tokens = Tokens::new(tokenizer, &text(3)).unwrap();
    assert_eq!(tokens.encode("fox fox fox").unwrap().encoding.len(), 3);
}
