package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.engine.Engines
import dev.pocketvlm.runtime.engine.NpuFacts

/** Which variant of a bundle runs here, or which two: one for the vision stages and another for the language model. */
internal class VariantChoice(private val manifest: Manifest, private val engines: Engines) {
    /** See [Bundle.variant]. */
    fun choose(target: String?): VariantSpec {
        if (target == null) return first().also(::checkStages)
        val (vision, decoder) = if ("+" in target) {
            find(target.substringBefore("+")) to find(target.substringAfter("+"))
        } else {
            find(target).let { it to it }
        }
        checkStages(vision)
        checkStages(decoder)
        checkDevice(vision, VisionContract.stageNames(vision))
        try {
            checkDevice(decoder, DecoderContract.stageNames(decoder))
        } catch (error: EnvironmentException) {
            throw EnvironmentException(error.problem, instead(vision) + error.hint, error)
        }
        return place(vision, decoder)
    }

    private fun find(target: String): VariantSpec =
        manifest.variants.firstOrNull { target == it.name || target == it.target } ?: throw UsageException(
            "the bundle has no variant for '$target'",
            "it has ${manifest.variants.map { it.target }.distinct().joinToString()}",
        )

    private fun first(): VariantSpec {
        val reasons = mutableListOf<String>()
        val hints = mutableListOf<String>()
        for (variant in manifest.variants) {
            try {
                checkRunsHere(variant, variant.stages.keys)
            } catch (error: PocketVlmException) {
                reasons += "${variant.name}: ${error.problem}"
                hints += error.hint
                continue
            }
            if (variant.device == null || npu()?.emulated != true) return variant
            reasons += "${variant.name}: ${variant.device.soc} is only emulated here"
            hints += "target ${variant.target} asks for the emulation, which takes minutes for an answer"
        }
        val known = hints.filter { it.isNotEmpty() }.distinct()
        throw EnvironmentException(
            "no variant of the bundle runs here: ${reasons.joinToString("; ")}",
            (known + "export the checkpoint for ort-cpu, which runs anywhere").joinToString(", or "),
        )
    }

    /** Which target has these vision stages and a language model that runs here, for a hint; empty if none has. */
    private fun instead(vision: VariantSpec): String {
        for (other in manifest.variants) {
            try {
                checkRunsHere(other, DecoderContract.stageNames(other))
            } catch (_: PocketVlmException) {
                continue
            }
            val target = if (other === vision) other.target else "${vision.target}+${other.target}"
            return "target $target runs here, with the language model of ${other.target}; or "
        }
        return ""
    }

    private fun checkRunsHere(variant: VariantSpec, stages: Collection<String>) {
        stages.map { variant.engineOf(it).engine }.distinct().forEach(engines::load)
        checkDevice(variant, stages)
    }

    /**
     * Refuses binaries that were compiled for another device, or by a compiler that is newer than the runtime here. The
     * architecture of an NPU follows from its SoC's name; nothing tells it otherwise. Where the NPU is emulated, any SoC
     * will do, but binaries that share weights will not.
     */
    private fun checkDevice(variant: VariantSpec, stages: Collection<String>) {
        val needed = variant.device ?: return
        val used = stages.map(variant::engineOf).filter { it.engine == Manifest.NPU_ENGINE }
        if (used.isEmpty()) return
        val here = npu() ?: throw EnvironmentException(
            "variant '${variant.name}' needs an NPU runtime, and the engine ${Manifest.NPU_ENGINE} tells of none here",
            "hand one to the session's engines",
        )
        if (compareReleases(here.qairt, needed.qairt) < 0) {
            throw EnvironmentException(
                "variant '${variant.name}' was compiled by QAIRT ${needed.qairt}; the runtime here is QAIRT ${here.qairt}, " +
                    "which is older",
                "bring a newer qnn-runtime along, or export with the one that is here",
            )
        }
        if (!here.emulated) {
            checkSoc(variant.name, needed, here)
        } else if (used.any { "shared_weights" in it.options }) {
            // It would end the process.
            throw EnvironmentException(
                "variant '${variant.name}' has binaries that share weights, which Qualcomm's emulation cannot run",
                "run it on a ${needed.soc}, or export with qnn.weight_sharing: false",
            )
        }
    }

    private fun checkSoc(name: String, needed: DeviceSpec, here: NpuFacts) {
        if (here.soc == needed.soc) return
        throw EnvironmentException(
            "variant '$name' was compiled for ${needed.soc} (architecture v${needed.architecture}); this machine's SoC is " +
                (here.soc ?: "not known"),
            "export it for ${if (here.soc == null) "this SoC" else "qnn:${here.soc}"} or ort-cpu",
        )
    }

    private fun npu(): NpuFacts? = engines.load(Manifest.NPU_ENGINE).npu

    /** Refuses a variant that lacks a stage, or that has one which this runtime does not know. */
    private fun checkStages(variant: VariantSpec) {
        (VisionContract.STAGES + DecoderContract.STAGES).firstOrNull { variant.chain(it).isEmpty() }?.let {
            throw BundleException("manifest.json: variant '${variant.name}' has no stage '$it'", "export the checkpoint again")
        }
        val known = (VisionContract.stageNames(variant) + DecoderContract.stageNames(variant)).toSet()
        val unknown = variant.stages.keys - known
        if (unknown.isNotEmpty()) {
            throw BundleException(
                "manifest.json: variant '${variant.name}' needs stages ${unknown.sorted().joinToString()}",
                "update PocketVLM",
            )
        }
    }

    /** The vision stages of one variant with the language model of another. */
    private fun place(vision: VariantSpec, decoder: VariantSpec): VariantSpec {
        if (vision === decoder) return vision
        val tokens = vision.stages.getValue(vision.chain("connector").last()).outputs[0].shape.last()
        val embeddings = decoder.stages.getValue("embed_tokens").outputs[0].shape.last()
        if (tokens != embeddings) {
            throw UsageException("variants '${vision.name}' and '${decoder.name}' do not fit: $tokens and $embeddings")
        }
        val stages = VisionContract.stageNames(vision).associateWith { explicit(vision, it) } +
            DecoderContract.stageNames(decoder).associateWith { explicit(decoder, it) }
        return decoder.copy(
            name = "${vision.name}+${decoder.name}",
            target = "${vision.target}+${decoder.target}",
            visionBatch = vision.visionBatch,
            stages = stages,
            device = decoder.device ?: vision.device,
        )
    }

    private fun explicit(variant: VariantSpec, stage: String): StageSpec {
        val (engine, options) = variant.engineOf(stage)
        return variant.stages.getValue(stage).copy(engine = engine, engineOptions = options)
    }

    /** By major and minor number: patches of one release read each other's binaries. */
    private fun compareReleases(left: String, right: String): Int {
        fun numbers(version: String) = Regex("[0-9]+").findAll(version).take(2).map { it.value.toInt() }.toList()
        val (leftNumbers, rightNumbers) = numbers(left) to numbers(right)
        return compareValuesBy(leftNumbers, rightNumbers, { it.getOrElse(0) { 0 } }, { it.getOrElse(1) { 0 } })
    }
}

/** What runs where, for metrics: "ort-cpu (onnxruntime)", or both halves where they differ. */
internal fun backendName(variant: VariantSpec, engines: Engines): String {
    val vision = engineName(variant, variant.chain("vision_encoder").first(), engines)
    val decoder = engineName(variant, variant.chain("decode").first(), engines)
    return "${variant.target} (" + (if (vision == decoder) vision else "vision: $vision, decoder: $decoder") + ")"
}

/** The engine of each graph, and whether its device is emulated: "onnxruntime-qnn, emulated". */
internal fun stageEngines(variant: VariantSpec, engines: Engines): Map<String, String> =
    variant.stages.keys.associateWith { engineName(variant, it, engines) }

private fun engineName(variant: VariantSpec, stage: String, engines: Engines): String {
    val name = variant.engineOf(stage).engine
    return if (engines.load(name).npu?.emulated == true) "$name, emulated" else name
}
