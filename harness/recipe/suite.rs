//! A suite as data: what is trained, on which lists and splits, and how it is probed. In: one TOML file, embedded or a
//! user's own. Out: a [`Suite`], whose encoders each resolve to a [`Recipe`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use super::{DatasetName, EncoderId, PretrainSplit, Protocol, Recipe, RecipeError, overrides};
use crate::text::{printable, toml_reason};

/// An embedded suite has about 2 KB.
const SUITE_BYTES: u64 = 1 << 20;

/// Pre-training seeds that a suite or a command may ask for.
pub const MOST_SEEDS: u16 = 100;

// Every file of fixtures/suites: (name, text).
include!(concat!(env!("OUT_DIR"), "/suites.rs"));

/// The file of a suite.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct SuiteFile {
    title: String,
    dataset: DataKey,
    splits: Vec<usize>,
    #[serde(default = "one")]
    seeds: u16,
    protocols: Vec<Protocol>,
    encoders: Vec<EncoderSpec>,
    /// The keys that one method alone has, by its name.
    #[serde(default)]
    method: BTreeMap<String, Table>,
    /// The keys that all encoders share.
    recipe: Table,
}

/// The data of a suite: a name, or where one's own data lie.
#[derive(Debug, Clone)]
struct DataKey {
    name: DatasetName,
    own: Option<OwnData>,
}

/// One's own data and lists, as `sdclr split make` writes them. The paths are relative to the suite's file until it is opened.
/// They are no part of a recipe's JSON: records name data and lists by their hashes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnData {
    /// `folders` or `arrays`.
    #[serde(deserialize_with = "own_kind")]
    pub kind: DatasetName,
    /// The folder of the training images, or their arrays.
    pub train: PathBuf,
    pub test: PathBuf,
    /// The folder of the lists.
    pub lists: PathBuf,
}

/// The kind of one's own data; an unknown one is told those that there are, and not the published data sets.
fn own_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DatasetName, D::Error> {
    let kind = String::deserialize(deserializer)?;
    let known = DatasetName::deserialize(StrDeserializer::<D::Error>::new(&kind)).ok().filter(|kind| kind.is_own());
    known
        .ok_or_else(|| Error::custom(format!("unknown kind of your own data `{kind}`, expected `folders` or `arrays`")))
}

impl<'de> Deserialize<'de> for DataKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By hand, so that an unknown name is told as such.
        deserializer.deserialize_any(DataKeyVisitor)
    }
}

struct DataKeyVisitor;

impl<'de> Visitor<'de> for DataKeyVisitor {
    type Value = DataKey;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("the name of a data set, or { kind, train, test, lists }")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<DataKey, E> {
        let name = DatasetName::deserialize(StrDeserializer::<E>::new(name))?;
        match name.is_own() {
            true => Err(E::custom("name your own images by a table { kind, train, test, lists }")),
            false => Ok(DataKey { name, own: None }),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DataKey, A::Error> {
        let own = OwnData::deserialize(MapAccessDeserializer::new(map))?;
        Ok(DataKey { name: own.kind, own: Some(own) })
    }
}

/// An encoder of a suite: what trains it, and on which lists.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderSpec {
    pub name: String,
    pub method: String,
    /// How tables call it; where absent the method's own label if it has the method's name, else its name.
    pub label: Option<String>,
    /// The lists that it is pre-trained on by default; none for an encoder that is not trained.
    #[serde(default)]
    pub lists: Vec<PretrainSplit>,
    /// Recipe keys in which it differs from the shared recipe.
    #[serde(default)]
    overrides: Table,
    /// Whether it runs where no encoder is named.
    #[serde(default = "yes")]
    pub default: bool,
}

fn yes() -> bool {
    true
}

fn one() -> u16 {
    1
}

/// A suite, read and checked.
#[derive(Debug, Clone)]
pub struct Suite {
    /// Of an embedded suite its name, of a user's file its stem.
    pub name: String,
    pub title: String,
    pub dataset: DatasetName,
    pub own_data: Option<OwnData>,
    pub splits: Vec<usize>,
    /// Pre-training seeds an encoder where the command does not say; no part of a recipe.
    pub seeds: u16,
    pub protocols: Vec<Protocol>,
    pub encoders: Vec<EncoderSpec>,
    methods: BTreeMap<String, Table>,
    shared: Table,
}

impl Suite {
    /// The names of the embedded suites, in alphabetical order.
    pub fn names() -> impl Iterator<Item = &'static str> + Clone {
        EMBEDDED.iter().map(|(name, _)| *name)
    }

    /// The file that `name` is the path of, and not the name of an embedded suite.
    pub fn file(name: &str) -> Option<&Path> {
        name.ends_with(".toml").then(|| Path::new(name))
    }

    /// The suite that `name` means: an embedded one, or that in a file.
    ///
    /// # Errors
    /// There is no such suite, or its file cannot be read or accepted.
    pub fn open(name: &str) -> Result<Self, RecipeError> {
        match (EMBEDDED.iter().find(|(known, _)| *known == name), Self::file(name)) {
            (Some((_, text)), _) => Self::parse(name, text),
            (None, Some(path)) => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                let mut suite = Self::parse(&stem, &crate::fs::read_text(path, SUITE_BYTES)?)?;
                if let Some(OwnData { train, test, lists, .. }) = &mut suite.own_data {
                    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                    let folder = folder.unwrap_or(Path::new("."));
                    [train, test, lists].into_iter().for_each(|path| *path = folder.join(&*path));
                }
                Ok(suite)
            }
            (None, None) => Err(RecipeError::UnknownSuite {
                name: name.to_owned(),
                near: overrides::nearest(name, Self::names()),
                known: Self::names().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The suite called `name` in `text`.
    ///
    /// # Errors
    /// The text does not parse, has unknown keys, or names an encoder or split that no run can have.
    pub fn parse(name: &str, text: &str) -> Result<Self, RecipeError> {
        let syntax =
            |error: toml::de::Error| RecipeError::Syntax { name: printable(name), reason: toml_reason(text, &error) };
        let SuiteFile { title, dataset, mut splits, seeds, protocols, encoders, method, recipe } =
            toml::from_str(text).map_err(syntax)?;
        splits.sort_unstable();
        splits.dedup();
        let suite = Self {
            name: name.to_owned(),
            title,
            dataset: dataset.name,
            own_data: dataset.own,
            splits,
            seeds,
            protocols,
            encoders,
            methods: method,
            shared: recipe,
        };
        suite.check()?;
        Ok(suite)
    }

    fn check(&self) -> Result<(), RecipeError> {
        let refuse = |key: &str, found: String, expected: &str| {
            Err(RecipeError::Value { key: key.to_owned(), found, expected: expected.to_owned() })
        };
        overrides::check_keys(&self.shared, &Self::shared_keys())?;
        for (key, empty) in [
            ("splits", self.splits.is_empty()),
            ("protocols", self.protocols.is_empty()),
            ("encoders", self.encoders.is_empty()),
        ] {
            if empty {
                return refuse(key, "nothing".to_owned(), "at least one is needed");
            }
        }
        if self.splits.contains(&0) {
            return refuse("splits", "0".to_owned(), "splits are counted from 1");
        }
        if !(1..=MOST_SEEDS).contains(&self.seeds) {
            return refuse("seeds", self.seeds.to_string(), &format!("1 to {MOST_SEEDS} are needed"));
        }
        for (place, encoder) in self.encoders.iter().enumerate() {
            let name = &encoder.name;
            // A folder is called by the encoder's name, and is read back.
            let list = encoder.lists.first().copied();
            let misread = [None, list].into_iter().any(|list| {
                let id = EncoderId { encoder: name.clone(), list, split: 1, seed: 1 };
                id.to_string().parse() != Ok(id)
            });
            let plain = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
            if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) || !name.chars().all(plain) || misread {
                let expected = "letters, digits, '-', '_' and '.' are needed, without an ending like -D_i or -split1";
                return refuse("encoders.name", format!("{name:?}"), expected);
            }
            if self.encoders[..place].iter().any(|earlier| earlier.name == *name) {
                return refuse("encoders.name", format!("{name} twice"), "every encoder needs a name of its own");
            }
            self.recipe(encoder, &[])?;
        }
        Ok(())
    }

    /// The keys of `[recipe]`, dotted: those of any embedded suite, which leave none out.
    fn shared_keys() -> Vec<String> {
        let file: Option<SuiteFile> = EMBEDDED.first().and_then(|(_, text)| toml::from_str(text).ok());
        overrides::keys(&file.map(|file| file.recipe).unwrap_or_default())
    }

    /// The encoder called `name`.
    ///
    /// # Errors
    /// The suite has none.
    pub fn encoder(&self, name: &str) -> Result<&EncoderSpec, RecipeError> {
        let names = || self.encoders.iter().map(|encoder| encoder.name.as_str());
        self.encoders.iter().find(|encoder| encoder.name == name).ok_or_else(|| RecipeError::UnknownEncoder {
            suite: self.name.clone(),
            name: name.to_owned(),
            near: overrides::nearest(name, names()),
            known: names().collect::<Vec<_>>().join(", "),
        })
    }

    /// An encoder named as on the command line: `sdclr`, or `sdclr-D_i` for one list alone.
    ///
    /// # Errors
    /// The suite has no such encoder.
    pub fn encoder_and_list(&self, name: &str) -> Result<(&EncoderSpec, Option<PretrainSplit>), RecipeError> {
        let parts = name.rsplit_once('-').and_then(|(encoder, list)| {
            let list = <PretrainSplit as clap::ValueEnum>::from_str(list, false).ok()?;
            Some((self.encoder(encoder).ok().filter(|encoder| !encoder.lists.is_empty())?, Some(list)))
        });
        match parts {
            Some(parts) => Ok(parts),
            None => Ok((self.encoder(name)?, None)),
        }
    }

    /// Whether a recipe of `encoder` has `key`: a shared one, or one of its method's own.
    pub fn has_key(&self, encoder: &EncoderSpec, key: &str) -> bool {
        self.table(encoder).is_ok_and(|table| overrides::keys(&table).iter().any(|known| known == key))
    }

    /// Shared keys and the method's own in one table.
    fn table(&self, encoder: &EncoderSpec) -> Result<Table, RecipeError> {
        let mut table = self.shared.clone();
        for (key, value) in self.methods.get(&encoder.method).into_iter().flatten() {
            if table.insert(key.clone(), value.clone()).is_some() {
                let (key, found) = (format!("method.{}", encoder.method), format!("'{key}'"));
                return Err(RecipeError::Value {
                    key,
                    found,
                    expected: "keys that [recipe] lacks are needed".to_owned(),
                });
            }
        }
        Ok(table)
    }

    /// The recipe of `encoder`, with `overrides` (`key=value`) applied last.
    ///
    /// # Errors
    /// An override names no key of the recipe, or a value is not allowed.
    pub fn recipe(&self, encoder: &EncoderSpec, overrides: &[String]) -> Result<Recipe, RecipeError> {
        let name = format!("{}/{}", self.name, encoder.name);
        let mut table = self.table(encoder)?;
        for (key, value) in overrides::leaves(&encoder.overrides) {
            overrides::set(&mut table, &key, value)?;
        }
        for text in overrides {
            overrides::apply(&mut table, text)?;
        }
        let own = self.methods.get(&encoder.method).into_iter().flatten();
        let own = own.filter_map(|(key, _)| table.remove(key).map(|value| (key.clone(), value)));
        let own: BTreeMap<String, Value> = own.collect();
        table.insert("method".to_owned(), Value::String(encoder.method.clone()));
        table.insert("dataset".to_owned(), Value::String(super::name_of(&self.dataset)));
        let mut recipe: Recipe =
            table.clone().try_into().map_err(|error| super::checks::misfit(&name, &table, &error))?;
        for (key, value) in own {
            let value = serde_json::to_value(value)?;
            recipe.own.insert(key, value);
        }
        recipe.own_data.clone_from(&self.own_data);
        recipe.validate()?;
        Ok(recipe)
    }

    /// The suite and the encoder that `name` means: SUITE/ENCODER or FILE.toml:ENCODER.
    ///
    /// # Errors
    /// The name has another form, or there is no such suite or encoder.
    pub fn of_recipe(name: &str) -> Result<(Self, EncoderSpec), RecipeError> {
        let parts = match name.rsplit_once(':') {
            Some((file, encoder)) if file.ends_with(".toml") => Some((file, encoder)),
            _ if name.ends_with(".toml") => None,
            _ => name.rsplit_once('/'),
        };
        let Some((suite, encoder)) = parts else {
            let known = Self::names().collect::<Vec<_>>().join(", ");
            return Err(RecipeError::NotARecipe { name: name.to_owned(), known });
        };
        let suite = Self::open(suite)?;
        let encoder = suite.encoder(encoder)?.clone();
        Ok((suite, encoder))
    }
}
