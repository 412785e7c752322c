"""What a puzzle says of the donor: metadata columns put into sentences.

Contract: values are cleaned and cut, unknown ones left out, columns that are not listed here never get into a prompt.
The sentences are those of the released construction (Cell-o1, Table 9, and its records): sex, stage, ethnicity and
tissue in one, then the disease, then what else is known. The text ends with a space, as the released ones do.

Deviations: the release looks at extra columns by the name of a file's folder, here those that are there are used;
columns without a sentence in the paper (body mass index, the site of a tumour) get a plain one.
"""

from collections.abc import Mapping

from cellray.puzzles.puzzle import clean

MAIN = ("sex", "development_stage", "self_reported_ethnicity", "tissue", "disease")
_UNKNOWN = ("", "nan", "unknown", "none", "na")
_YES_NO = {"true": "yes", "false": "no", "1": "yes", "0": "no"}
_EXTRA: dict[str, dict[str, str]] = {
    "ever_smoker": {"yes": "The patient is a smoker.", "no": "The patient is not a smoker."},
    "smoking_status": {
        "active": "The patient is an active smoker.",
        "former": "The patient is a former smoker.",
        "hist of marijuana use": "The patient has a history of marijuana use",
        "never": "The patient has never smoked.",
    },
    "tumor_stage": {
        "non-cancer": "There is no cancer present.",
        "early": "The patient has an early-stage tumor.",
        "advanced": "The patient has an advanced-stage tumor.",
    },
    "sampletype": {
        "m3": "The sample was collected at month 3 post-treatment.",
        "m6": "The sample was collected at month 6 post-treatment.",
        "uv": "The sample was exposed to ultraviolet (UV) treatment.",
        "control": "The sample is from the control group.",
    },
    "hemisphere": {"": "The tissue sample was taken from the {} hemisphere of the brain."},
    "harm_tumor.site": {
        "primary": "The tumor is located at the primary site.",
        "metastasis": "The tumor has metastasized to other parts of the body.",
        "normal": "This sample was collected from non-tumorous tissue.",
    },
    "harm_sample.type": {
        "tumor": "The sample is derived from tumor tissue.",
        "normal": "The sample is derived from normal tissue.",
        "blood": "The sample is a blood-derived specimen.",
        "lymphnode": "The sample is derived from lymph node tissue.",
    },
    "harm_cd45pos": {
        "yes": "The cell is CD45-positive, suggesting an immune cell origin.",
        "no": "The cell is CD45-negative, suggesting a non-immune cell lineage.",
        "mixed": "The sample contains a mixture of CD45-positive and CD45-negative cells.",
    },
    "harm_tumor.type": {"": "The tumor type is {}."},
    "harm_condition": {"": "The condition is {}."},
    "diabetes_history": {
        "yes": "The patient has a history of diabetes.",
        "no": "The patient does not have diabetes.",
    },
    "hypertension": {
        "yes": "The patient has a history of hypertension.",
        "no": "The patient does not have hypertension.",
    },
    "activation": {
        "activated": "The sample was stimulated and represents activated immune cells.",
        "resting": "The sample represents resting (non-activated) immune cells.",
    },
    "genotype": {
        "flt3-itd,npm1-mut": "The patient carries FLT3-ITD and NPM1 mutations.",
        "flt3-wt,npm1-mut": "The patient carries a wild-type FLT3 and an NPM1 mutation.",
        "apl": "The patient is diagnosed with acute promyelocytic leukemia (APL).",
    },
    "medical_conditions": {
        "epilepsy": "The patient has a history of epilepsy.",
        "tumor": "The patient has a diagnosed brain tumor.",
        "hydrocephalus": "The patient has hydrocephalus (fluid buildup in the brain).",
        "both": "The patient has both epilepsy and a brain tumor.",
        "other": "The patient has other neurological conditions.",
    },
    "condition": {
        "healthy": "The donor was healthy with no reported skin condition.",
        "dm - non ulcer": "The donor had diabetes mellitus without skin ulceration.",
        "keloid": "The donor had a keloid, which is an overgrowth of scar tissue.",
        "localised scleroderma": "The donor was diagnosed with localized scleroderma.",
        "scar": "The donor had a typical scar from prior skin injury.",
    },
    "lung_condition": {"": "The lung condition is described as {}."},
    "author_tumor_subsite": {"": "The tumor subsite is {}."},
    "bmi": {"": "The body mass index of the patient is {}."},
    "donor_bmi": {"": "The body mass index of the patient is {}."},
    "egfr": {"": "The patient's estimated glomerular filtration rate (eGFR) is in the range {}."},
}


def columns(there: list[str]) -> list[str]:
    """Return those of a data set's columns that a context is made of."""
    return [name for name in there if name in MAIN or name.lower() in _EXTRA]


def describe(row: Mapping[str, str]) -> str:
    """Return the context of a cell with the ``columns`` ``row``."""
    known = {name.lower(): clean(value) for name, value in row.items()}
    known = {name: value for name, value in known.items() if value.lower() not in _UNKNOWN}
    first = "The cell is from"
    for name, form in (
        ("sex", " a {}"),
        ("development_stage", " at the {}"),
        ("self_reported_ethnicity", " with {} background"),
        ("tissue", ", originating from the {}"),
    ):
        if name in known:
            first += form.format(known[name])
    disease = known.get("disease")
    if disease is not None:
        healthy = disease.lower() == "normal"
        first += ". The patient " + (
            "is healthy with no diagnosed disease." if healthy else f"has been diagnosed with {disease}."
        )
    return " ".join([first, *filter(None, (_extra(name, known.get(name)) for name in _EXTRA))]) + " "


def _extra(name: str, value: str | None) -> str:
    if value is None:
        return ""
    sentences = _EXTRA[name]
    if "" in sentences:
        return sentences[""].format(value)
    folded = _YES_NO.get(value.lower(), value.lower()) if "yes" in sentences else value.lower()
    return sentences.get(folded, "")
