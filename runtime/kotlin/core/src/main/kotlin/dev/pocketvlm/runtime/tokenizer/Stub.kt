package dev.pocketvlm.runtime.tokenizer
import java.io.File
public data class Stretch(val text: String, val trusted: Boolean)
public class Tokenizer private constructor() {
  public val addedTokens: Map<String, Int> get() = TODO()
  public val specialTokens: Set<String> get() = TODO()
  public fun tokenId(token: String): Int? = TODO()
  public fun encodeMixed(stretches: List<Stretch>, control: Set<String>, addSpecialTokens: Boolean = false): IntArray = TODO()
  public companion object { public fun open(file: File, name: String = file.path): Tokenizer = TODO() }
}
public class StreamDecoder(t: Tokenizer) { public fun push(id: Int): String = TODO()
 public fun finish(): String = TODO() }
public class StopStrings(s: List<String>) { public data class Shown(val text: String, val stopped: Boolean)
 public fun push(t: String): Shown = TODO()
 public fun finish(): String = TODO() }
